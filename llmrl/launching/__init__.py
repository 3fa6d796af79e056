"""From one recipe to many processes: topology, memory and placement plan, torchrun, Slurm and Ray. Behind `llmrl launch`.

topology  how many nodes, devices and processes, and whether the recipe can be shared among them
sizes     parameter counts of models, also of those that are not on this machine
footprint what each process needs of memory, by back-end
placement which process trains and samples where
command   the torchrun command line and its environment
slurm     the batch script            ray       the job and its driver
run       starting it, passing signals on
rank      what runs in every process on a CPU: its share of the cores
"""
