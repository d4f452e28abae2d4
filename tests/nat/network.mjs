// A public network with NATs on it, made of network namespaces: a bridge to which routers and open hosts
// are connected, and hosts behind the routers. Needs root, iproute2 and nftables.

import { spawnSync } from 'node:child_process'

/** What stands between a host and the public network. */
export const kinds = {
  open: 'no NAT: the host has a public address',
  cone: 'a NAT that keeps the port, whatever the destination (masquerade)',
  random: 'a NAT that takes another port for each destination (masquerade fully-random)',
  carrier: 'two cone NATs, one behind the other: that of the home and that of the provider'
}

/** What two hosts may have in common. */
export const shared = {
  lan: 'one home: the hosts see each other, and their cone NAT sends nothing back inside',
  hairpin: 'one provider: two homes behind a NAT that sends back what one sends to the address of the other',
  provider: 'one provider: two homes behind a NAT that does not'
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
  return lacks.length > 0 ? lacks : refused()
}

/** What the system does not let us do, although the programs are there. */
function refused() {
  let network
  try {
    network = new Network()
    network.host('random')
    return []
  } catch (error) {
    return [`the right to make networks, or a kernel that can (${error.message.trim()})`]
  } finally {
    network?.close()
  }
}

/** The network. `close()` takes it down; programs in it have to end before. */
export class Network {
  #name = `nat${process.pid}`
  #namespaces = []
  #count = 0

  constructor() {
    this.core = this.#namespace('net')
    try {
      this.#build()
    } catch (error) {
      this.close()
      throw error
    }
  }

  #build() {
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
    const host = this.#namespace(`h${number}`)
    if (kind === 'open') {
      this.#plug(host, 'eth0', number)
      return host
    }
    const home = this.#router(number, 'r', { isRandom: kind === 'random', mappingSeconds })
    if (kind === 'carrier') {
      const carrier = this.#router(number, 'c', { mappingSeconds })
      this.#plug(carrier, 'wan', number)
      this.#connect(carrier, 'lan', home, 'wan', `100.64.${number & 255}`)
    } else {
      this.#plug(home, 'wan', number)
    }
    this.#connect(home, 'lan', host, 'eth0', `192.168.${number & 255}`)
    return host
  }

  /** Adds two hosts that share something. */
  pair(kind) {
    const [first, second] = [++this.#count, ++this.#count]
    const hosts = [first, second].map((number) => this.#namespace(`h${number}`))
    if (kind === 'lan') {
      const router = this.#router(first, 'r')
      this.#plug(router, 'wan', first)
      const subnet = `192.168.${first & 255}`
      shell(`
        ip -n ${router} link add lan type bridge
        ip -n ${router} addr add ${subnet}.1/24 dev lan
        ip -n ${router} link set lan up
      `)
      hosts.forEach((host, index) => shell(`
        ip -n ${router} link add lan${index} type veth peer name eth0 netns ${host}
        ip -n ${router} link set lan${index} master lan up
        ip -n ${host} addr add ${subnet}.${2 + index}/24 dev eth0
        ip -n ${host} link set eth0 up
        ip -n ${host} route add default via ${subnet}.1
      `))
      return hosts
    }
    const carrier = this.#router(first, 'c')
    this.#plug(carrier, 'wan', first)
    const homes = [first, second].map((number, index) => {
      const home = this.#router(number, 'r')
      this.#connect(carrier, `lan${index}`, home, 'wan', `100.64.${number & 255}`)
      this.#connect(home, 'lan', hosts[index], 'eth0', `192.168.${number & 255}`)
      return `100.64.${number & 255}.2`
    })
    if (kind === 'hairpin') {
      // A cone NAT keeps ports, so that it is the other home's whatever is not the own one's.
      const address = publicAddress(first)
      shell(`
        ip netns exec ${carrier} nft -f - <<RULES
          table ip hairpin {
            chain back {
              type nat hook prerouting priority dstnat
              iifname "lan0" ip daddr ${address} udp dport != 0 dnat to ${homes[1]}
              iifname "lan1" ip daddr ${address} udp dport != 0 dnat to ${homes[0]}
            }
            chain source {
              type nat hook postrouting priority srcnat
              oifname "lan*" ip protocol udp snat to ${address}
            }
          }
RULES
      `)
    }
    return hosts
  }

  /** A router that does not forward from its interface "wan" what nobody inside asked for. */
  #router(number, letter, { isRandom = false, mappingSeconds = 30 } = {}) {
    const router = this.#namespace(`${letter}${number}`)
    const random = isRandom ? ' fully-random' : ''
    shell(`
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
    return router
  }

  /** Connects an interface of a router to one of what is behind it. */
  #connect(router, inside, behind, device, subnet) {
    shell(`
      ip -n ${router} link add ${inside} type veth peer name ${device} netns ${behind}
      ip -n ${router} addr add ${subnet}.1/24 dev ${inside}
      ip -n ${router} link set ${inside} up
      ip -n ${behind} addr add ${subnet}.2/24 dev ${device}
      ip -n ${behind} link set ${device} up
      ip -n ${behind} route add default via ${subnet}.1
    `)
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

  /** Cuts a host's NAT off the public network, or connects it again. */
  cut(host, isCut) {
    shell(`ip -n ${host.replace('-h', '-r')} link set wan ${isCut ? 'down' : 'up'}`)
  }

  /** Takes hosts and their routers away. */
  remove(...hosts) {
    for (const host of hosts) {
      for (const name of ['-h', '-r', '-c'].map((letter) => host.replace('-h', letter))) {
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
  #plug(namespace, device, number) {
    const address = publicAddress(number)
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
