"""A thin client of etcd's v3 API: what the member registry needs and nothing else."""
