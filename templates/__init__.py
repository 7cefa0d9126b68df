"""Templates and stylesheet of the HTML report, installed as `maskaudit.report.templates`."""
