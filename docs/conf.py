"""The documentation as a site: `sphinx-build --fail-on-warning --keep-going docs site`, with what `upge[docs]` brings.

Sphinx because it is kept, checks every link and anchor, and needs nothing from a network, neither to build nor to view.
The pages stay the Markdown that code hosts show; what that can't say to Sphinx is in site_hooks.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "upge"
html_title = "upge"
extensions = ["myst_parser", "site_hooks", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings"]
source_suffix = {".md": "markdown"}
root_doc = "README"
nitpicky = True

myst_heading_anchors = 3
highlight_language = "none"  # indented blocks are formulas

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "inherited-members": "Part, StrictModel, BaseModel, Protocol, BaseException, SystemExit, str, object",
    "special-members": "__call__",
    "exclude-members": "model_config",
    "no-value": True,
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_custom_sections = [("Class variables", "Attributes")]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
