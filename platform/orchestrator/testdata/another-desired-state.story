config
> request a containers
say IDENTIFYING
containers: desired state
> request a containers
say IDENTIFYING
> request b containers
say IDENTIFICATION_FAILED "activity \"a\" is under way (identification): wait for its end or cancel it"
> containers IDENTIFIED + id=a
say IDENTIFIED id=a containers:x=IDENTIFIED
say RUNNING id=a containers:x=IDENTIFIED
containers: DOWNLOAD
> request a containers
say RUNNING containers:x=IDENTIFIED
> containers DOWNLOAD_FAILURE no + id=a
containers: CLEANUP
> containers CLEANUP_SUCCESS id=a
say INCOMPLETE "containers: no" containers:x=DOWNLOAD_FAILURE
refresh
> request a containers
say INCOMPLETE "containers: no (this activity has ended already; a new run needs a new activityId)"
> refuse a broken
