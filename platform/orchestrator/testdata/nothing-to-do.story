config
> request a containers self-update
say IDENTIFYING
containers: desired state
self-update: desired state
> containers IDENTIFIED
# Says COMPLETED without IDENTIFIED, and takes nothing new until it is released.
> self-update IDENTIFYING
> self-update COMPLETED
self-update: CLEANUP
say IDENTIFIED
say COMPLETED
refresh
> containers COMPLETED
