config
> request a containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
> restart boot1
> connected
say RUNNING containers:x=IDENTIFIED
> wait 30s
containers: DOWNLOAD
# Nothing else comes: it was no refusal.
> containers DOWNLOAD_FAILURE no space +
> wait 30s
containers: CLEANUP
> containers CLEANUP_SUCCESS
say INCOMPLETE "containers: no space" containers:x=DOWNLOAD_FAILURE
refresh
> request b containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
> containers DOWNLOADING +10
say RUNNING containers:x=DOWNLOADING
> disconnected
> connected
say RUNNING containers:x=DOWNLOADING
> wait 30s
containers: DOWNLOAD
> containers DOWNLOAD_FAILURE not allowed +
> containers DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS
containers: UPDATE
> containers UPDATE_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: ACTIVATE
> containers ACTIVATION_SUCCESS +
say RUNNING containers:x=UPDATE_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
say COMPLETED containers:x=UPDATE_SUCCESS
refresh
> request c containers
say IDENTIFYING
containers: desired state
> restart boot1
> connected
> wait 30s
containers: desired state
> containers IDENTIFICATION_FAILED busy
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
