config consent=DOWNLOAD,UPDATE
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFIED +
> self-update IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED self-update:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED self-update:x=IDENTIFIED
ask DOWNLOAD
> approved
containers: DOWNLOAD
self-update: DOWNLOAD
# A second tap is for nobody.
> approved
> containers DOWNLOAD_SUCCESS +
> self-update DOWNLOAD_SUCCESS +
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
ask UPDATE
> denied
containers: ROLLBACK
self-update: ROLLBACK
> containers ROLLBACK
say RUNNING containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
> containers ROLLBACK_SUCCESS
> self-update ROLLBACK_SUCCESS
containers: CLEANUP
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
> containers CLEANUP_FAILURE
say INCOMPLETE "the owner has refused UPDATE; containers: rolled back; self-update: rolled back" containers:x=DOWNLOAD_SUCCESS self-update:x=DOWNLOAD_SUCCESS
refresh
> containers INCOMPLETE
> request b containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
ask DOWNLOAD
> denied
containers: ROLLBACK
say INCOMPLETE "the owner has refused DOWNLOAD; containers: unchanged" containers:x=IDENTIFIED
refresh
> containers ROLLBACK_SUCCESS
containers: CLEANUP
> containers CLEANUP_SUCCESS
> request c containers
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
ask DOWNLOAD
> wait 30m
containers: ROLLBACK
say INCOMPLETE "the owner has not answered within 30m0s whether to DOWNLOAD; containers: unchanged" containers:x=IDENTIFIED
refresh
