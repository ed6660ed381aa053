config
> request a containers nosuch
say IDENTIFYING
containers: desired state
> containers IDENTIFIED +
say IDENTIFIED containers:x=IDENTIFIED
say RUNNING containers:x=IDENTIFIED
containers: DOWNLOAD
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
say INCOMPLETE "there is no agent for nosuch; containers: updated" containers:x=UPDATE_SUCCESS
refresh
> request b nosuch
say IDENTIFYING
say INCOMPLETE "there is no agent for nosuch"
refresh
> request c containers self-update nosuch baseline=containers,nosuch
say IDENTIFYING
self-update: desired state
> self-update IDENTIFIED
say IDENTIFIED
say INCOMPLETE "there is no agent for nosuch; containers: it shares a baseline with nosuch; self-update: unchanged"
refresh
> request d
say IDENTIFYING
say INCOMPLETE "the desired state has no domains"
refresh
> refuse e payload.domains[0]: expected an object
say IDENTIFICATION_FAILED id=e "payload.domains[0]: expected an object"
