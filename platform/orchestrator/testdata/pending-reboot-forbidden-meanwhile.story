config reboot
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
self-update: CLEANUP
> self-update CLEANUP_SUCCESS
say COMPLETED "reboot pending, unverified" self-update:x=UPDATE_SUCCESS
refresh
> wait 30s
gate
> unsafe driving
> configure noreboot
> restart boot1
> connected
> wait 1h
> request b self-update
say IDENTIFYING
self-update: desired state
