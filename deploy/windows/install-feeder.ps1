<#
.SYNOPSIS
Install the feeder on the Windows machine where miniQMT runs, and start it; or uninstall it.

.DESCRIPTION
UNTESTED: a parser reads it in the tests, but it has not yet run on a Windows machine.

Makes a virtual environment in -Folder, installs this checkout and xtquant into it, copies the example settings if there
are none, and starts the feeder in one of two ways:

  -WinSW FILE   as a service: before anybody has logged in, restarted when it dies. Market data only: a service lives in
                session 0, and xttrader reaches the terminal through shared memory, which may not cross sessions.
  -AtLogon      as a task of the Task Scheduler, in the session of the user who runs the terminal: what trade events need.
                The task runs `qmt-bridge feeder --supervised`, which restarts a feeder that ends or freezes. Closing its
                console window ends it; it starts again at the next logon.

Either way the miniQMT terminal has to run and be logged in; the feeder waits for it and reconnects by itself.

Run it again to update, to change from one way to the other, or to change -AllowFrom. Settings, data and logs stay.

-Uninstall removes service, task, firewall rule and virtual environment. Settings, data and logs stay in -Folder.

Needs 64-bit Python 3.11 (xtquant decodes in C up to 3.11 only, on 3.12 and later in slow pure Python), and for a service
a Python installed for all users.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File install-feeder.ps1 -WinSW C:\Downloads\WinSW-x64.exe

.EXAMPLE
powershell -ExecutionPolicy Bypass -File install-feeder.ps1 -AtLogon -AllowFrom 192.168.1.20,192.168.1.21

.EXAMPLE
powershell -ExecutionPolicy Bypass -File install-feeder.ps1 -Uninstall
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(DefaultParameterSetName = 'Service')]
param(
    # WinSW-x64.exe 2.12 from https://github.com/winsw/winsw/releases.
    [Parameter(Mandatory, ParameterSetName = 'Service')]
    [string] $WinSW,

    # Start at logon instead of as a service.
    [Parameter(Mandatory, ParameterSetName = 'Logon')]
    [switch] $AtLogon,

    # The user who runs the terminal.
    [Parameter(ParameterSetName = 'Logon')]
    [string] $User = "$env:USERDOMAIN\$env:USERNAME",

    # Stop the feeder and remove what this script has installed, but no data.
    [Parameter(Mandatory, ParameterSetName = 'Uninstall')]
    [switch] $Uninstall,

    # Addresses or networks of the gateways on other machines, which the firewall lets in; none by default. Words that
    # the firewall knows, such as Any, are refused.
    [Parameter(ParameterSetName = 'Service')]
    [Parameter(ParameterSetName = 'Logon')]
    [ValidatePattern('^[0-9a-fA-F.:/,-]+$')]
    [string[]] $AllowFrom = @(),

    # The ports of market_addr, trade_addr and ask_addr in the settings. Texts: -File gives "5555,5556" as one, which
    # would be the number 55555556.
    [Parameter(ParameterSetName = 'Service')]
    [Parameter(ParameterSetName = 'Logon')]
    [ValidatePattern('^[0-9,]+$')]
    [string[]] $Port = @('5555', '5556', '5557'),

    [string] $Folder = 'C:\qmt-bridge'
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$id = 'qmt-bridge-feeder'
$checkout = Split-Path (Split-Path $PSScriptRoot)
$venv = Join-Path $Folder '.venv'
$python = Join-Path $venv 'Scripts\python.exe'
$settings = Join-Path $Folder 'qmt-bridge.toml'
$data = Join-Path $Folder 'data'
$logs = Join-Path $Folder 'logs'
# WinSW finds its settings by its own name.
$service = Join-Path $Folder "$id.exe"

# Windows PowerShell goes on after a program that failed.
function Invoke-Program {
    param([string] $Program, [string[]] $Arguments)
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) { throw "$Program $Arguments ended with exit code $LASTEXITCODE" }
}

# Stop the feeder of an earlier run and remove its service, its task and its firewall rule.
function Remove-Feeder {
    if (Get-ScheduledTask -TaskName $id -ErrorAction SilentlyContinue) {
        Stop-ScheduledTask -TaskName $id
        Unregister-ScheduledTask -TaskName $id -Confirm:$false
    }
    if (Get-Service -Name $id -ErrorAction SilentlyContinue) {
        Stop-Service -Name $id
        Invoke-Program 'sc.exe' @('delete', $id)
    }
    Get-NetFirewallRule -Name $id -ErrorAction SilentlyContinue | Remove-NetFirewallRule
    # The feeder ends when the process that has started it is gone. Until then Windows keeps its files.
    $until = (Get-Date).AddSeconds(20)
    while ($running = Get-Process | Where-Object { $_.Path -eq $python }) {
        if ((Get-Date) -gt $until) { $running | Stop-Process -Force }
        Start-Sleep -Milliseconds 200
    }
}

# Return the text by which access lists name a user, under every language of Windows.
function Get-Sid {
    param([string] $Name)
    (New-Object System.Security.Principal.NTAccount $Name).Translate([System.Security.Principal.SecurityIdentifier]).Value
}

# Make a folder whose files only the system (SY), the administrators (BA) and the reader have rights to.
function Protect-Folder {
    param([string] $Path, [string] $Reader, [string] $Rights)
    New-Item -ItemType Directory -Force -Path $Path | Out-Null
    Invoke-Program 'icacls' @($Path, '/setowner', '*S-1-5-32-544', '/q')
    # All at once, and nothing inherited (P): a new folder in C:\ lets every user of the machine write, and one that was
    # there before may belong to somebody else. Each could put a program of his own into it.
    $list = New-Object System.Security.AccessControl.DirectorySecurity
    $list.SetSecurityDescriptorSddlForm(
        "O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;$Rights;;;$Reader)"
    )
    Set-Acl -Path $Path -AclObject $list
}

if ($Uninstall) {
    Remove-Feeder
    foreach ($made in $venv, $service, (Join-Path $Folder "$id.xml")) {
        if (Test-Path $made) { Remove-Item -Recurse -Force $made }
    }
    Write-Output "the feeder is uninstalled; its settings, data and logs stay in $Folder"
    exit
}

$base = Invoke-Program 'py' @('-3.11', '-c', 'import sys; print(sys.base_prefix)')
if (-not $AtLogon -and $base.StartsWith($env:USERPROFILE, [StringComparison]::OrdinalIgnoreCase)) {
    throw "$base belongs to one user, so the service could not read it: install Python 3.11 for all users"
}

Remove-Feeder

# The reader is the account of the feeder; S-1-5-19 is LocalService. It may read and run (0x1200a9) what is installed, and
# change (0x1301bf) its data and logs.
$reader = if ($AtLogon) { Get-Sid $User } else { 'S-1-5-19' }
Protect-Folder $Folder $reader '0x1200a9'
foreach ($written in $data, $logs) {
    Protect-Folder $written $reader '0x1301bf'
}
# Files of an earlier time, in folders that others can no longer write to, get the rights of these folders.
Invoke-Program 'icacls' @((Join-Path $Folder '*'), '/setowner', '*S-1-5-32-544', '/t', '/q')
Get-ChildItem -Force -Path $Folder | Where-Object { $_.FullName -notin $data, $logs } | ForEach-Object {
    Invoke-Program 'icacls' @($_.FullName, '/reset', '/t', '/q')
}
foreach ($written in $data, $logs) {
    Get-ChildItem -Force -Path $written | ForEach-Object { Invoke-Program 'icacls' @($_.FullName, '/reset', '/t', '/q') }
}

Invoke-Program 'py' @('-3.11', '-m', 'venv', $venv)
$deploy = Join-Path $checkout 'deploy'
Invoke-Program $python @('-m', 'pip', 'install', '--require-hashes', '-r', (Join-Path $deploy 'requirements.lock'),
    '-r', (Join-Path $deploy 'build.lock'))
Invoke-Program $python @('-m', 'pip', 'install', '--force-reinstall', '--no-deps', '--no-build-isolation', $checkout)
if (-not (Test-Path $settings)) {
    Copy-Item (Join-Path $checkout 'deploy\qmt-bridge.toml') $settings
}

if ($AllowFrom) {
    # By port and not by program: the python.exe of a virtual environment starts another one, which listens.
    New-NetFirewallRule -Name $id -DisplayName 'QMT Bridge feeder' -Direction Inbound -Action Allow -Profile Any `
        -Protocol TCP -LocalPort ($Port -split ',') -RemoteAddress ($AllowFrom -split ',') | Out-Null
}

if ($AtLogon) {
    $log = Join-Path $logs "$id.log"
    $command = "set PYTHONUTF8=1&& set QMT_BRIDGE_DATA_DIR=$data&& " +
        "`"$python`" -P -m qmt_bridge.cli feeder --supervised --config `"$settings`" 2>> `"$log`""
    $task = @{
        TaskName  = $id
        Action    = New-ScheduledTaskAction -Execute 'cmd.exe' -Argument "/d /s /c `"$command`"" -WorkingDirectory $Folder
        Trigger   = New-ScheduledTaskTrigger -AtLogOn -User $User
        # The rights of the terminal: one that runs as administrator is out of reach of a limited task.
        Principal = New-ScheduledTaskPrincipal -UserId $User -LogonType Interactive -RunLevel Limited
        # By default a task runs at low priority, is ended after three days, and stops on battery. The scheduler restarts
        # only a task that it could not start; the rest is done by --supervised.
        Settings  = New-ScheduledTaskSettingsSet -Priority 4 -ExecutionTimeLimit ([TimeSpan]::Zero) `
            -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -MultipleInstances IgnoreNew `
            -RestartCount 999 -RestartInterval (New-TimeSpan -Minutes 1)
    }
    Register-ScheduledTask @task -Force | Out-Null
    Start-ScheduledTask -TaskName $id
    Write-Output "the feeder starts when $User logs on, and has been started now; its log is $log"
}
else {
    Copy-Item $WinSW $service
    Copy-Item (Join-Path $PSScriptRoot "$id.xml") $Folder
    Invoke-Program $service @('install')
    Invoke-Program $service @('start')
    Write-Output "the service $id runs; its logs are in $logs"
}
