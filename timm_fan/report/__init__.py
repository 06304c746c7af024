from .paper import paper_scores
from .plots import draw_statistics, plot_maps
from .report import ReportInfo, write_report
from .text import format_binned, format_comparison, format_scores, percent, short_name, some_names
