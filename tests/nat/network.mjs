// A public network with NATs on it, made of network namespaces: a bridge to which routers and open hosts
// are connected, and hosts behind the routers. Needs root, iproute2 and nftables.

import { spawnSync } from 'node:child_process'

/** What stands between a host and the public network. */
export const kinds = {
  open: 'no NAT: the host has a public address',
  cone: 'a NAT that keeps the port, whatever the destination (masquerade)',
  random: 'a NAT that takes another port for each destination (masquerade fully-random)'
}

/** Where the public network's own nodes are. */
export const publicHost = '20.1.0.1'

/** What this machine lacks: one line of advice each. */
export function missing() {
  if (process.platform !== 'linux') return ['network namespaces: they exist on Linux only']
  const lacks = []
  if (process.getuid() !== 0) lacks.push('root: run it with sudo, or in a container with NET_ADMIN and SYS_ADMIN')
  const has = (command, ...args) => spawnSync(command, args).status === 0
  if (!has('ip', '-V')) lacks.push('iproute2 (the program ip)')
  if (!has('nft', '--version')) lacks.push('nftables (the program nft)')
  return lacks
}

/** The network. `close()` takes it down; programs in it have to end before. */
export class Network {
  #name = `nat${process.pid}`
  #namespaces = []
  #count = 0

  constructor() {
    this.core = this.#namespace('net')
    shell(`
      # With a given address: its own would change with its ports, and all hosts would lose it.
      ip -n ${this.core} link add br0 address 02:00:00:00:00:01 type bridge
      ip -n ${this.core} addr add ${publicHost}/16 dev br0
      ip -n ${this.core} link set br0 up
    `)
  }

  /**
   * Adds a host behind a NAT of this kind; returns its namespace. The NAT forgets a mapping that was
   * not used for `mappingSeconds`.
   */
  host(kind, { mappingSeconds = 30 } = {}) {
    const number = ++this.#count
    const address = publicAddress(number)
    const host = this.#namespace(`h${number}`)
    if (kind === 'open') {
      this.#plug(host, 'eth0', number, address)
      return host
    }
    const router = this.#namespace(`r${number}`)
    this.#plug(router, 'wan', number, address)
    const random = kind === 'random' ? ' fully-random' : ''
    shell(`
      ip -n ${router} link add lan type veth peer name eth0 netns ${host}
      ip -n ${router} addr add 192.168.${number & 255}.1/24 dev lan
      ip -n ${router} link set lan up
      ip -n ${host} addr add 192.168.${number & 255}.2/24 dev eth0
      ip -n ${host} link set eth0 up
      ip -n ${host} route add default via 192.168.${number & 255}.1
      ip netns exec ${router} sysctl -qw net.ipv4.ip_forward=1
      ip netns exec ${router} nft -f - <<RULES
        table ip lab {
          chain out {
            type nat hook postrouting priority srcnat
            oifname "wan" masquerade${random}
          }
          # Without this, a packet that comes before its hole is open would take the hole's place in
          # the connection table. Routers at home drop it too.
          chain in {
            type filter hook input priority filter
            iifname "wan" ct state new drop
          }
          chain through {
            type filter hook forward priority filter
            iifname "wan" ct state new drop
          }
        }
RULES
      ip netns exec ${router} sysctl -qw net.netfilter.nf_conntrack_udp_timeout=${mappingSeconds}
      ip netns exec ${router} sysctl -qw net.netfilter.nf_conntrack_udp_timeout_stream=${mappingSeconds}
    `)
    return host
  }

  /** Gives the NAT in front of a host another public address, as providers do at night. */
  move(host) {
    const router = host.replace('-h', '-r')
    const before = publicAddress(Number(host.split('-h')[1]))
    shell(`
      ip -n ${router} addr del ${before}/16 dev wan
      ip -n ${router} addr add ${publicAddress(++this.#count)}/16 dev wan
    `)
  }

  /** Takes hosts and their routers away. */
  remove(...hosts) {
    for (const host of hosts) {
      for (const name of [host, host.replace('-h', '-r')]) {
        const index = this.#namespaces.indexOf(name)
        if (index === -1) continue
        this.#namespaces.splice(index, 1)
        spawnSync('ip', ['netns', 'del', name])
      }
    }
  }

  /** Takes all of it down. */
  close() {
    for (const name of this.#namespaces.splice(0).reverse()) spawnSync('ip', ['netns', 'del', name])
  }

  #namespace(suffix) {
    const name = `${this.#name}-${suffix}`
    shell(`ip netns add ${name}\n ip -n ${name} link set lo up`)
    this.#namespaces.push(name)
    return name
  }

  /** Connects an interface of a namespace to the public network. */
  #plug(namespace, device, number, address) {
    shell(`
      ip -n ${namespace} link add ${device} type veth peer name p${number} netns ${this.core}
      ip -n ${this.core} link set p${number} master br0 up
      ip -n ${namespace} addr add ${address}/16 dev ${device}
      ip -n ${namespace} link set ${device} up
    `)
  }
}

function publicAddress(number) {
  return `20.1.${1 + (number >> 7)}.${1 + (number & 127)}`
}

function shell(script) {
  const { status, stderr } = spawnSync('sh', ['-e'], { input: script, encoding: 'utf8' })
  if (status !== 0) throw new Error(`the network could not be built: ${stderr}`)
}
