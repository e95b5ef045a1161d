from .json_output import to_json as to_json
from .report import Report as Report
from .report_files import ReportContent as ReportContent
from .sarif import to_github as to_github
from .sarif import to_sarif as to_sarif
