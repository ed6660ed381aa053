config resume=self-update
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
> containers DOWNLOADING +40
say RUNNING containers:x=DOWNLOADING self-update:x=IDENTIFIED
> cancel x
> cancel a
self-update: ROLLBACK
> self-update ROLLBACK
say RUNNING containers:x=DOWNLOADING self-update:x=IDENTIFIED
> self-update ROLLBACK_SUCCESS
> self-update INCOMPLETE
> containers DOWNLOAD_SUCCESS +
containers: ROLLBACK
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
say INCOMPLETE "cancelled by test; containers: rolled back; self-update: rolled back" containers:x=DOWNLOAD_SUCCESS self-update:x=IDENTIFIED
refresh
