"""The command `upge`: one file a verb. Data goes to stdout, everything else to stderr.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong; 130 and 143 interrupted and terminated.
"""
