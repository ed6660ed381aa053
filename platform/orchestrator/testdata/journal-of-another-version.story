config resume=containers
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
> restart boot1 version=2
containers: ROLLBACK
self-update: ROLLBACK
> connected
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: ROLLBACK
> containers ROLLBACK_SUCCESS
> self-update ROLLBACK_SUCCESS
containers: CLEANUP
self-update: CLEANUP
> containers CLEANUP_SUCCESS
> self-update CLEANUP_SUCCESS
say INCOMPLETE "it was begun by another version of the update manager; containers: rolled back; self-update: rolled back" containers:x=IDENTIFIED self-update:x=IDENTIFIED
refresh
