"""Copy a finished suite's results to results/published/<suite>; the default suite's main table also goes into README.md.

python workflow/publish.py quick
"""

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("rows.csv", "cases.parquet", "provenance.json", "suite.yaml", "report.html", "tables", "figures")
#: What only suites with claims have, and what only suites with explanations have.
OPTIONAL = ("pool.parquet", "explanations.parquet")
BLOCK = re.compile(r"(<!-- main table -->\n).*?(<!-- end of main table -->)", re.DOTALL)


def publish(suite: str) -> Path:
    """Replace what is published of `suite` by what its folder of results holds; the published folder."""
    source, target = ROOT / "results" / suite, ROOT / "results" / "published" / suite
    commit = json.loads((source / "provenance.json").read_text())
    if commit["git_dirty"]:
        print(f"note: {suite} was computed with uncommitted changes on {commit['git_commit'][:10]}", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (*KEPT, *(name for name in OPTIONAL if (source / name).exists())):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns(".snakemake*"))
        else:
            shutil.copy(source / name, target / name)
    return target


def into_readme(table: str) -> None:
    """Put the Markdown table between the two markers of README.md."""
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda block: block[1] + "\n" + table.strip() + "\n\n" + block[2], readme.read_text()))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        published = publish(name)
        print(published.relative_to(ROOT))
        if name == "quick":
            into_readme((published / "tables/main.md").read_text())
