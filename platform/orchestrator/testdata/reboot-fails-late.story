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
> unsafe driving
say RUNNING "the reboot has to wait: driving" self-update:x=UPDATE_SUCCESS
> wait 59m55s
gate
> safe
reboot
> rebootfailed busy
> wait 30s
gate
> safe
reboot
> rebootfailed busy
> wait 30s
gate
> safe
reboot
> rebootfailed busy
self-update: ROLLBACK
