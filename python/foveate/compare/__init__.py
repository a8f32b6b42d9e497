"""`foveate compare`: which efficient attention suits an input, its lengths and this machine.

comparison = compare(text_sources(Path("book.txt"), layer=3, longest=4096), Settings(lengths=(512, 1024, 4096)))
comparison.report.panels[0].answer
write_html(comparison, Path("report.html"))
"""

from foveate.compare.errors import UserError
from foveate.compare.inputs import Source, default_sources, file_sources, photo_source, text_sources
from foveate.compare.report import write_html, write_json
from foveate.compare.results import Comparison, Report
from foveate.compare.run import Settings, Watcher, compare

__all__ = [
    "Comparison",
    "Report",
    "Settings",
    "Source",
    "UserError",
    "Watcher",
    "compare",
    "default_sources",
    "file_sources",
    "photo_source",
    "text_sources",
    "write_html",
    "write_json",
]
