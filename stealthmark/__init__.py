"""Ownership watermarks for medical image segmentation models: mark, attack, examine.

The library under the benchmark; `stages` holds a module a stage, whose function is also a command of the command line.
"""

import warnings

#: Of the package and of the benchmark: raised whenever the same suite would give other numbers or other columns (CHANGELOG.md).
__version__ = "0.6.0"

# torchvision and timm use what torch has deprecated; nothing that a user of this package could mend.
warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=FutureWarning)
