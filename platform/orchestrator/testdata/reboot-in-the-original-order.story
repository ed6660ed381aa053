config reboot resume=self-update
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
containers: CLEANUP
self-update: CLEANUP
> containers CLEANUP_SUCCESS
> self-update CLEANUP_SUCCESS
say COMPLETED "reboot pending, unverified" containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
refresh
> request b containers
say IDENTIFICATION_FAILED "the vehicle is going to reboot after activity \"a\""
> wait 29s
> wait 1s
gate
> unsafe driving
> wait 5s
gate
> safe
reboot
> restart boot2
> connected
> wait 10m
> request b containers
say IDENTIFYING
containers: desired state
