"""What lies in the repository folder, and what of it is to be served.

index.py         models, versions, and which of them
artifact.py      one version on disk
model_config.py  config.yaml
buckets.py       which batch sizes it is run at
loading.py       from files to a session that may serve: the steps whose end is called "ready"
row_check.py     whether its outputs count rows; trial_rows.py makes the rows for it
travel.py        whether its tensors fit through a ticket at all
"""
