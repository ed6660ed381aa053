config
> request "" containers
say IDENTIFYING
containers: desired state
> request "" self-update
say IDENTIFICATION_FAILED "activity \"\" is under way (identification): wait for its end or cancel it"
