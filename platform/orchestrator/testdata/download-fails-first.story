config
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFIED +
> self-update IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED self-update:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: DOWNLOAD
self-update: DOWNLOAD
> self-update DOWNLOAD_FAILURE no space +
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
> self-update INCOMPLETE
> containers DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_FAILURE
containers: UPDATE
> containers UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=DOWNLOAD_FAILURE
containers: ACTIVATE
> containers ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=DOWNLOAD_FAILURE
containers: CLEANUP
> containers CLEANUP_SUCCESS
say INCOMPLETE "containers: updated; self-update: no space" containers:x=UPDATE_SUCCESS self-update:x=DOWNLOAD_FAILURE
refresh
