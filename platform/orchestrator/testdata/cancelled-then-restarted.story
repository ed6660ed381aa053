config
> request a containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
> cancel a
> restart boot1
> connected
say RUNNING containers:x=IDENTIFIED
# DOWNLOAD is not sent again.
> wait 30s
containers: ROLLBACK
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
say INCOMPLETE "cancelled by test; containers: rolled back" containers:x=IDENTIFIED
refresh
