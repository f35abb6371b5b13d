<#
.SYNOPSIS
Install the feeder on the Windows machine where miniQMT runs, and start it.

.DESCRIPTION
UNTESTED: written from the documentation of PowerShell, WinSW and Windows, not yet run on a Windows machine.

Makes a virtual environment in -Folder, installs this checkout and xtquant into it, copies the example settings if there
are none, and starts the feeder in one of two ways:

  -WinSW FILE   as a service: before anybody has logged in, restarted when it dies. Market data only: a service lives in
                session 0, and xttrader reaches the terminal through shared memory, which may not cross sessions.
  -AtLogon      as a task of the Task Scheduler, in the session of the user who runs the terminal: what trade events need.
                Closing its console window ends it; it starts again at the next logon.

Either way the miniQMT terminal has to run and be logged in; the feeder waits for it and reconnects by itself.

Needs 64-bit Python 3.11 (xtquant decodes in C up to 3.11 only, on 3.12 and later in slow pure Python), and for a service
a Python installed for all users.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File install-feeder.ps1 -WinSW C:\Downloads\WinSW-x64.exe

.EXAMPLE
powershell -ExecutionPolicy Bypass -File install-feeder.ps1 -AtLogon

.NOTES
Uninstall: C:\qmt-bridge\qmt-bridge-feeder.exe stop; C:\qmt-bridge\qmt-bridge-feeder.exe uninstall
or:        Unregister-ScheduledTask -TaskName qmt-bridge-feeder
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

    [string] $Folder = 'C:\qmt-bridge'
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Windows PowerShell goes on after a program that failed.
function Invoke-Program {
    param([string] $Program, [string[]] $Arguments)
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) { throw "$Program $Arguments ended with exit code $LASTEXITCODE" }
}

$id = 'qmt-bridge-feeder'
$checkout = Split-Path (Split-Path $PSScriptRoot)
$python = Join-Path $Folder '.venv\Scripts\python.exe'
$settings = Join-Path $Folder 'qmt-bridge.toml'
$data = Join-Path $Folder 'data'
$logs = Join-Path $Folder 'logs'

$base = Invoke-Program 'py' @('-3.11', '-c', 'import sys; print(sys.base_prefix)')
if (-not $AtLogon -and $base.StartsWith($env:USERPROFILE, [StringComparison]::OrdinalIgnoreCase)) {
    throw "$base belongs to one user, so the service could not read it: install Python 3.11 for all users"
}

New-Item -ItemType Directory -Force -Path $Folder, $data, $logs | Out-Null
# A new folder in C:\ lets every user of the machine write: each could put a program of his own into it. So nothing is
# inherited, also where the folder was there before and belongs to somebody else.
# S-1-5-18 is the system, S-1-5-32-544 the administrators, S-1-5-19 LocalService, under every language of Windows.
$reader = if ($AtLogon) { $User } else { '*S-1-5-19' }
Invoke-Program 'icacls' @($Folder, '/setowner', '*S-1-5-32-544', '/t', '/q')
Invoke-Program 'icacls' @($Folder, '/reset', '/t', '/q')
Invoke-Program 'icacls' @($Folder, '/inheritance:r', '/grant:r', '*S-1-5-18:(OI)(CI)F', '*S-1-5-32-544:(OI)(CI)F',
    "${reader}:(OI)(CI)RX", '/q')
foreach ($written in $data, $logs) {
    Invoke-Program 'icacls' @($written, '/grant', "${reader}:(OI)(CI)M", '/q')
}
Invoke-Program 'py' @('-3.11', '-m', 'venv', (Join-Path $Folder '.venv'))
$deploy = Join-Path $checkout 'deploy'
Invoke-Program $python @('-m', 'pip', 'install', '--require-hashes', '-r', (Join-Path $deploy 'requirements.lock'),
    '-r', (Join-Path $deploy 'build.lock'))
Invoke-Program $python @('-m', 'pip', 'install', '--no-deps', '--no-build-isolation', $checkout)
if (-not (Test-Path $settings)) {
    Copy-Item (Join-Path $checkout 'deploy\qmt-bridge.toml') $settings
}

if ($AtLogon) {
    $log = Join-Path $logs "$id.log"
    $command = "set PYTHONUTF8=1&& set QMT_BRIDGE_DATA_DIR=$data&& " +
        "`"$python`" -P -m qmt_bridge.cli feeder --config `"$settings`" 2>> `"$log`""
    $task = @{
        TaskName  = $id
        Action    = New-ScheduledTaskAction -Execute 'cmd.exe' -Argument "/d /s /c `"$command`"" -WorkingDirectory $Folder
        Trigger   = New-ScheduledTaskTrigger -AtLogOn -User $User
        # The rights of the terminal: one that runs as administrator is out of reach of a limited task.
        Principal = New-ScheduledTaskPrincipal -UserId $User -LogonType Interactive -RunLevel Limited
        # By default a task runs at low priority, is ended after three days, and stops on battery.
        Settings  = New-ScheduledTaskSettingsSet -Priority 4 -ExecutionTimeLimit ([TimeSpan]::Zero) `
            -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -MultipleInstances IgnoreNew `
            -RestartCount 999 -RestartInterval (New-TimeSpan -Minutes 1)
    }
    Register-ScheduledTask @task -Force | Out-Null
    Start-ScheduledTask -TaskName $id
    Write-Output "the feeder starts when $User logs on, and has been started now; its log is $log"
}
else {
    # WinSW finds its settings by its own name.
    $service = Join-Path $Folder "$id.exe"
    Copy-Item $WinSW $service
    Copy-Item (Join-Path $PSScriptRoot "$id.xml") $Folder
    Invoke-Program $service @('install')
    Invoke-Program $service @('start')
    Write-Output "the service $id runs; its logs are in $logs"
}
