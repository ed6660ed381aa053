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
> unsafe driving
say RUNNING "the reboot has to wait: driving" containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
# From now on nobody may reboot it.
> configure noreboot
> restart boot1
containers: CLEANUP
self-update: CLEANUP
> connected
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
containers: CLEANUP
self-update: CLEANUP
> containers CLEANUP_SUCCESS
> self-update CLEANUP_SUCCESS
say COMPLETED "reboot pending, unverified" containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
refresh
> wait 1h
