#compdef sdvbox slots agent copy
_sdvbox() {
	local -a found
	found=(${(f)"$(sdvbox __complete "${(@)words[1,CURRENT]}" 2>/dev/null | sed 's/:/\\:/g; s/\t/:/')"})
	if (( $#found )); then
		_describe sdvbox found
	else
		_files
	fi
}
if [ "$funcstack[1]" = _sdvbox ]; then _sdvbox; else compdef _sdvbox sdvbox slots agent copy; fi
