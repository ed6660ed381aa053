config
> request a containers self-update baseline=containers,self-update
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
# An agent of the original kind takes ROLLBACK only between two steps.
> containers DOWNLOAD_SUCCESS +
containers: ROLLBACK
> containers ROLLBACK
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_FAILURE
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> self-update CLEANUP_SUCCESS
> containers CLEANUP_SUCCESS
say INCOMPLETE "containers: rolled back; self-update: no space" containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_FAILURE
refresh
