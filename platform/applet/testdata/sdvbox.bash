_sdvbox() {
	COMPREPLY=()
	local word
	while IFS=$'\t' read -r word _; do
		COMPREPLY+=("$word")
	done < <(sdvbox __complete "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
}
complete -o default -F _sdvbox sdvbox slots agent copy
