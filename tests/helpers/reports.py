"""Queries of reports of `diagnose`, for tests."""


def faults(report):
    return {finding.fault: finding.layer for finding in report.findings()}
