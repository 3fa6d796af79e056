"""From one recipe to many processes: topology, placement, torchrun, Slurm and Ray. Behind `llmrl launch`.

topology  how many nodes, devices and processes
placement which process trains and samples where
command   the torchrun command line and its environment
slurm     the batch script            ray       the job and its driver
run       starting it, passing signals on
rank      what runs in every process on a CPU: its share of the cores
"""
