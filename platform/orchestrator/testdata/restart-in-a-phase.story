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
> restart boot1
> wait 1h
# The one that goes on by itself is told again at once, the other when it is silent.
> connected
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
self-update: DOWNLOAD
> self-update DOWNLOAD_SUCCESS +
> wait 30s
containers: DOWNLOAD
# It had the order already.
> containers DOWNLOAD_FAILURE not allowed
> containers DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
containers: UPDATE
self-update: UPDATE
> restart boot1
> connected
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
self-update: UPDATE
> containers UPDATING +40
say RUNNING containers:x=UPDATING self-update:x=DOWNLOAD_SUCCESS
> wait 1m
> containers UPDATE_FAILURE broken +
containers: CLEANUP
> self-update UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_FAILURE self-update:x=UPDATE_SUCCESS
self-update: ACTIVATE
> restart boot1
> connected
say RUNNING containers:x=UPDATE_FAILURE self-update:x=UPDATE_SUCCESS
self-update: ACTIVATE
> containers CLEANUP_SUCCESS
> self-update ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_FAILURE self-update:x=UPDATE_SUCCESS
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
say INCOMPLETE "containers: broken; self-update: updated, reboot pending, unverified" containers:x=UPDATE_FAILURE self-update:x=UPDATE_SUCCESS
refresh
