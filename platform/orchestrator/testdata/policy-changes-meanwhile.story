config all resume=containers,self-update
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
> configure baseline
> restart boot1
> connected
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: DOWNLOAD
self-update: DOWNLOAD
> containers DOWNLOAD_FAILURE no space +
containers: CLEANUP
self-update: ROLLBACK
> self-update ROLLBACK_SUCCESS
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
> containers CLEANUP_SUCCESS
say INCOMPLETE "containers: no space; self-update: rolled back" containers:x=DOWNLOAD_FAILURE self-update:x=IDENTIFIED
refresh
