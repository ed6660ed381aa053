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
> configure only=containers
> restart boot1
containers: ROLLBACK
> connected
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: ROLLBACK
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
say INCOMPLETE "containers: rolled back; self-update: its agent is no longer configured" containers:x=IDENTIFIED self-update:x=IDENTIFIED
refresh
