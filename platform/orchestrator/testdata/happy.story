config
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFYING
> containers IDENTIFIED +
> self-update IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED self-update:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: DOWNLOAD
self-update: DOWNLOAD
> containers DOWNLOADING +40
say RUNNING containers:x=DOWNLOADING self-update:x=IDENTIFIED
> containers DOWNLOAD_SUCCESS +100
> self-update DOWNLOAD_SUCCESS +100
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
containers: UPDATE
self-update: UPDATE
> self-update UPDATE_SUCCESS +
> containers UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
containers: ACTIVATE
self-update: ACTIVATE
> containers ACTIVATION_SUCCESS +
> self-update ACTIVATING +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATING
> self-update ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
containers: CLEANUP
self-update: CLEANUP
> containers CLEANUP_SUCCESS
> containers COMPLETED
> self-update CLEANUP_SUCCESS
say COMPLETED "reboot pending, unverified" containers:x=UPDATE_SUCCESS self-update:x=UPDATE_SUCCESS
refresh
> self-update COMPLETED
