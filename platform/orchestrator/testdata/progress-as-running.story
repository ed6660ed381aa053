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
> containers UPDATING +10
say RUNNING containers:x=UPDATING
> containers RUNNING
containers: DOWNLOAD
> containers DOWNLOAD_FAILURE not allowed
> containers UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: ACTIVATE
> containers ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
say COMPLETED containers:x=UPDATE_SUCCESS
refresh
