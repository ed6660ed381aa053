config
> request a containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
> containers DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS
containers: UPDATE
> containers UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: ACTIVATE
> containers ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: CLEANUP
> wait 10m
say INCOMPLETE "containers: activated, but no answer to CLEANUP within 10m0s" containers:x=UPDATE_SUCCESS
refresh
