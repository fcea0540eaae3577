# Metadata lives in pyproject.toml. What stands here is what that file cannot say: two data folders of the top level
# (zoo/, projects/) are packaged inside parlai_safety, and parlai_internal is a namespace shared with ParlAI users.
from setuptools import find_namespace_packages, setup

FOLDERS = {"parlai_safety._zoo": "zoo", "parlai_safety._projects": "projects"}

setup(
    packages=find_namespace_packages(include=["parlai_safety*", "parlai_internal*"]) + list(FOLDERS),
    package_dir=FOLDERS,
    package_data={
        "": [f"**/*.{ending}" for ending in ("jsonl", "json", "txt", "md", "yaml", "j2", "opt", "sh", "png")]
        + ["py.typed"]
    },
)
