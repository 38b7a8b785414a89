"""Ownership watermarks for medical image segmentation models: mark, attack, examine.

The library under the benchmark; `stages` holds one function a stage, which is also one command of the command line.
"""

import warnings

__version__ = "0.1.0"

# torchvision and timm use what torch has deprecated; nothing that a user of this package could mend.
warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=FutureWarning)
