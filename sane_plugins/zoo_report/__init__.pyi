from .best_network import BestNetwork
from .network_row import NetworkRow, ReportedNetwork
from .page import html_page
from .record import to_record
from .relatives import Relatives
from .zoo_report import Fingerprinted, ZooReport, report_on

__all__ = [
    "BestNetwork",
    "Fingerprinted",
    "NetworkRow",
    "Relatives",
    "ReportedNetwork",
    "ZooReport",
    "html_page",
    "report_on",
    "to_record",
]
