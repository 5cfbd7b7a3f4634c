"""What tests ask of a report of `diagnose`."""


def faults(report):
    return {finding.fault: finding.layer for finding in report.findings()}
