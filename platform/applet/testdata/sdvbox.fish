for name in sdvbox slots agent copy
	complete -c $name -a '(sdvbox __complete (commandline -opc) (commandline -ct) 2>/dev/null)'
end
