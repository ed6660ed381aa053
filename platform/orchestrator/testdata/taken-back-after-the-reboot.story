config reboot resume=containers,self-update
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
> containers DOWNLOAD_SUCCESS +
> self-update DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
containers: UPDATE
self-update: UPDATE
> containers UPDATE_SUCCESS +
> self-update UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
containers: ACTIVATE
self-update: ACTIVATE
> containers ACTIVATION_SUCCESS +
> self-update ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
> wait 30s
gate
> safe
reboot
# It is too late to cancel while the vehicle goes down.
> cancel a
> restart boot2
> connected
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
refresh
> fresh self-update
self-update: ACTIVATE
> self-update ACTIVATING +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATING
> cancel a
containers: ROLLBACK
self-update: ROLLBACK
> self-update ROLLBACK_SUCCESS Slot A is next, reboot required.
> containers ROLLBACK_SUCCESS
containers: CLEANUP
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
> containers CLEANUP_SUCCESS
say INCOMPLETE "cancelled by test; containers: rolled back; self-update: rolled back, reboot pending" containers:x=UPDATE_SUCCESS self-update:x=UPDATING
refresh
> wait 31s
gate
> safe
reboot
> restart boot3
> connected
> wait 1h
