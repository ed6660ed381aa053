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
> wait 5s
gate
> unsafe not parked
say RUNNING "the reboot has to wait: not parked" self-update:x=UPDATE_SUCCESS
> wait 2h
gate
self-update: ROLLBACK
self-update: CLEANUP
say INCOMPLETE "it was not safe to reboot within 1h0m0s: not parked; self-update: it did not confirm the rollback" self-update:x=UPDATE_SUCCESS
refresh
> self-update ROLLBACK_SUCCESS
> self-update CLEANUP_SUCCESS
