config reboot resume=self-update
> request a self-update
say IDENTIFYING
self-update: desired state
> self-update IDENTIFIED +
say IDENTIFIED self-update:x=IDENTIFIED
say RUNNING self-update:x=IDENTIFIED
self-update: DOWNLOAD
> self-update DOWNLOAD_SUCCESS +
say RUNNING self-update:x=DOWNLOAD_SUCCESS
self-update: UPDATE
> self-update UPDATE_SUCCESS +
say RUNNING self-update:x=UPDATE_SUCCESS
self-update: ACTIVATE
> self-update ACTIVATION_SUCCESS +
say RUNNING self-update:x=UPDATE_SUCCESS
> wait 30s
gate
> safe
reboot
> rebootfailed no bus
> wait 30s
gate
> safe
reboot
> wait 5m
> wait 30s
gate
> safe
reboot
> rebootfailed no bus
self-update: ROLLBACK
> self-update ROLLBACK_SUCCESS
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
say INCOMPLETE "the vehicle cannot be rebooted: no bus; self-update: rolled back" self-update:x=UPDATE_SUCCESS
refresh
