#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What BusyBox's udhcpc does with an address: called with the event in $1 and
# the rest in the environment.
# shellcheck disable=SC2154 # interface, ip … come from udhcpc
case "$1" in
deconfig)
	ip -4 addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}"
	for gateway in $router; do
		route add default gw "$gateway" dev "$interface" 2>/dev/null && break
	done
	if [ -n "$dns" ]; then
		for server in $dns; do
			echo "nameserver $server"
		done >/etc/resolv.conf
	fi
	;;
esac
exit 0
