config all
> request a containers nosuch
say IDENTIFYING
say IDENTIFICATION_FAILED "there is no agent for nosuch; containers: unchanged"
refresh
