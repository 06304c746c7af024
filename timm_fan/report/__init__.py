from .paper import paper_scores
from .plots import draw_statistics, plot_maps
from .report import ReportInfo, write_report
