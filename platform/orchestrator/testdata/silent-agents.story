config
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFIED +
> wait 10m
self-update: ROLLBACK
containers: ROLLBACK
say IDENTIFICATION_FAILED "containers: unchanged; self-update: no answer to DESIREDSTATE within 10m0s" containers:x=IDENTIFIED
refresh
# Neither is left waiting, and neither has to answer.
> wait 2m
containers: CLEANUP
self-update: CLEANUP
> request b containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFIED +
> self-update IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED self-update:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
containers: DOWNLOAD
self-update: DOWNLOAD
> self-update DOWNLOAD_SUCCESS +
# Progress extends the deadline.
> wait 9m
> containers DOWNLOADING +40
say RUNNING containers:x=DOWNLOADING self-update:x=DOWNLOAD_SUCCESS
> wait 9m
> containers DOWNLOADING +60
say RUNNING containers:x=DOWNLOADING self-update:x=DOWNLOAD_SUCCESS
> wait 10m
containers: ROLLBACK
say RUNNING containers:x=DOWNLOADING self-update:x=DOWNLOAD_SUCCESS
self-update: UPDATE
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> self-update UPDATE_SUCCESS +
say RUNNING containers:x=DOWNLOADING self-update:x=UPDATE_SUCCESS
self-update: ACTIVATE
> containers CLEANUP_SUCCESS
> self-update ACTIVATION_SUCCESS +
say RUNNING containers:x=DOWNLOADING self-update:x=UPDATE_SUCCESS
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
say INCOMPLETE "containers: no answer to DOWNLOAD within 10m0s (rolled back); self-update: updated, reboot pending, unverified" containers:x=DOWNLOADING self-update:x=UPDATE_SUCCESS
refresh
