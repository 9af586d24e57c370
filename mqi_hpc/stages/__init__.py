"""The programs that run on the cluster: interpret, beams, convert. Python 3.9, numpy, pydicom, the records.

Exit codes of all stages stand in `mqi_hpc.stages.errors`.
"""
