config
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> self-update IDENTIFICATION_FAILED 100%d bad
> containers IDENTIFIED +
containers: ROLLBACK
say IDENTIFICATION_FAILED "containers: unchanged; self-update: 100%d bad" containers:x=IDENTIFIED
refresh
> request b containers
say IDENTIFYING
> containers ROLLBACK_SUCCESS id=a
containers: CLEANUP
> containers CLEANUP_SUCCESS id=a
containers: desired state
